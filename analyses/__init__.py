"""Evidence about which singular components matter, each piece of which ends in a spec for `surgery.apply`."""

import surgery  # noqa: F401  (before any module of this package: it notices a stranger's `hooks`)
