"""See tests.support.simulation.campaign: what processes are begun with has to have a name."""

from __future__ import annotations

import sys

from tests.support.simulation.campaign import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
