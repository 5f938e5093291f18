"""`python -m study`, `accelerate launch -m study` and `torchrun -m study` are the command `study`."""

from study.cli import main

if __name__ == "__main__":
    main()
