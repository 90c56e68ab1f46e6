"""The demonstration: a small model is trained, operated on, measured, and written up as a page."""
