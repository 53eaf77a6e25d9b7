"""`ivj launch`: see `processes`."""

import sys

from internvideo_jax.launch.processes import main

if __name__ == "__main__":
    sys.exit(main())
