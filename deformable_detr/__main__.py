"""Entry point of `python -m deformable_detr`: the command line."""

from deformable_detr.cli.main import main

if __name__ == "__main__":
    main()
