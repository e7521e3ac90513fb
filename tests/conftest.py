"""Its place puts this folder on the import path: any test may ``import models``."""
