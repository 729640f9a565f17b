"""`python -m tn4nn` is the command `tn4nn`."""

import os
import sys

if __name__ == "__main__":
    # Python has put the current folder first on the search path: a `torch.py` there is none of ours. It stays only
    # where tn4nn itself was found in it, a source tree.
    if sys.path[:1] == [os.getcwd()] and not __file__.startswith(os.path.join(os.getcwd(), "")):
        del sys.path[0]

    from ._cli import command

    command()
