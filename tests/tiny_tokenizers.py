"""Small tokenizers of the common kinds, trained in memory, and small models that read with them."""

import torch
import transformers as hf
from models import hooked
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

CORPUS = (
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Peru is Lima, and of Japan Tokyo. "
    "When Mary and John went to the store, John gave a drink to Mary. The war lasted from the year 1732 to the year "
    "1745. New York is a city. Yorkshire is not. One plus one is two; two plus two is four. 3 x 4 = 12, 4 x 3 = 12. "
) * 4
SPECIAL = ["<unk>", "<s>", "</s>"]


def byte_level(size: int = 320) -> Tokenizer:
    """As GPT-2: bytes, merged; a space belongs to the word after it, and nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return tokenizer


def sentence_piece(size: int = 160) -> Tokenizer:
    """As Llama: every text gets a space before it; characters outside the training text are unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    # Only for training, so that no token reaches over a space.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(
        [CORPUS], trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    )
    tokenizer.pre_tokenizer = None
    return tokenizer


def characters() -> Tokenizer:
    """A merged vocabulary without an unknown token: what it does not know, it leaves out without a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.Fuse()
    tokenizer.train_from_iterator(
        [CORPUS], trainers.BpeTrainer(vocab_size=60, special_tokens=SPECIAL, show_progress=False)
    )
    return tokenizer


def whole_words(words: str, *, special: list[str] = SPECIAL) -> Tokenizer:
    """A word a token; without an unknown token among the special ones it raises at what it does not know."""
    vocabulary = {word: number for number, word in enumerate([*special, *dict.fromkeys(words.split())])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def wrapped(tokenizer: Tokenizer, **settings: object) -> hf.PreTrainedTokenizerFast:
    """The tokenizer as models hold it, putting its beginning-of-sequence token before a text."""
    gpt = tokenizer.token_to_id("<|endoftext|>") is not None
    bos, eos = ("<|endoftext|>", "<|endoftext|>") if gpt else ("<s>", "</s>")
    unknown = {} if gpt else {"unk_token": "<unk>"}
    # Without add_bos_token TransformerLens loads the tokenizer again, from a hub.
    names = {"bos_token": bos, "eos_token": eos, "pad_token": eos, "add_bos_token": True, **unknown}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, name_or_path="in memory", **{**names, **settings})


def without_own_bos(model: nn.Module) -> nn.Module:
    """The model, its tokenizer no longer putting the beginning-of-sequence token before a text by itself."""
    model.tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    model.cfg.tokenizer_prepends_bos = False
    return model


def bridge_with(tokenizer: hf.PreTrainedTokenizerFast | None, *, rotary: bool = True, d_vocab: int = 50) -> nn.Module:
    """A random TransformerBridge that reads with the tokenizer: Llama with rotary, GPT-2 with absolute positions."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    torch.manual_seed(0)
    size = d_vocab if tokenizer is None else len(tokenizer)
    if rotary:
        llama = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**llama, vocab_size=size, max_position_embeddings=96))
    else:
        model = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=size, n_positions=96))
    _spread(model)
    return build_bridge_from_module(model.eval(), type(model).__name__, hf_config=model.config, tokenizer=tokenizer)


def hooked_with(tokenizer: hf.PreTrainedTokenizerFast | None, *, rotary: bool = True, d_vocab: int = 50) -> nn.Module:
    """A random HookedTransformer that reads with the tokenizer."""
    size = d_vocab if tokenizer is None else len(tokenizer)
    model = hooked("rms-folded-grouped-rotary" if rotary else "ln", d_vocab=size, n_ctx=96)
    _spread(model)
    if tokenizer is not None:
        model.set_tokenizer(tokenizer)
    return model


def _spread(model: nn.Module) -> None:
    """Weights large enough that the model has opinions: probabilities far from uniform."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
