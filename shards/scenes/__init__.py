"""The miniature world: scenes with known attributes, worded, drawn, and read back from pixels."""
