"""`python -m deformable_detr` is the command line."""

from deformable_detr.cli.main import main

if __name__ == "__main__":
    main()
