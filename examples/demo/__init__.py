"""A small model is trained, operated on and measured, and the results are written up as a page."""
