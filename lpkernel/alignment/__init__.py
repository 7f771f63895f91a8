"""Where a face is in a picture, where a bank has them, and how the one becomes framed as the other."""

FRAMINGS = ("auto", "as-is", "crop", "align")  # here, so that the command line need not import what frames
