"""python -m lpkernel: the command line without an installed script."""

from lpkernel.cli import main

raise SystemExit(main())
