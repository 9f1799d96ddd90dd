"""`python -m raygen`, for places where the console script is not on the path."""

from raygen.cli import main

main()
