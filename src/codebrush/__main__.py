"""``python -m codebrush`` is the ``codebrush`` command."""

from codebrush.cli.main import main

if __name__ == "__main__":
    main()
