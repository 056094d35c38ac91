"""Results as tables, figures and pages."""

import logging

# "Matplotlib created a temporary cache directory ..." in a container without a home folder.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
