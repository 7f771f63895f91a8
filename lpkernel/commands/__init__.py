"""The commands of `lpkernel`: each module adds its parser in `register`; heavy imports wait until it runs."""
