"""Where a face is in a picture, where a bank's images have theirs, and how the picture is framed to match."""

FRAMINGS = ("auto", "as-is", "crop", "align")  # here, so that the command line need not import the framing code
