"""Gives trainings on a CPU a DataLoader worker, in each interpreter with this folder on its path."""

import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

NAME = "alpro.stages.training.dataset"


class Finder(MetaPathFinder):
    """Replaces the DataLoader of the training data set when that is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            loader = module.DataLoader
            more = {"num_workers": 1, "prefetch_factor": 2}
            module.DataLoader = lambda *arguments, **options: loader(
                *arguments, **options | more
            )

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
