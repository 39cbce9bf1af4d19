"""`python -m headrace` is `headrace`."""

from headrace.program import main

main()
