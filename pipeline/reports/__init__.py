"""Results as tables, figures and pages."""

import logging

# Hide "Matplotlib created a temporary cache directory", which a container without a home prints.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
