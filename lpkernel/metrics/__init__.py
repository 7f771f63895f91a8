"""Numbers about sets of pictures: how near they are to real ones, how much they vary, how much they copy."""
