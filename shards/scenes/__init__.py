"""A miniature world of 64 × 64 scenes: coloured shapes whose attributes are known, worded, drawn and read back."""
