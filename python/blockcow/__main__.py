"""`python -m blockcow`: the same as the program `blockcow`."""

from blockcow.cli import main

if __name__ == "__main__":
    main()
