"""Python runs this at the start of every process that tests start. It hides packages that workshop code never asks for.

SageMaker's SDK brings scikit-learn and SciPy, and the tests bring bitsandbytes. Where transformers and peft find them,
they import them, which takes two seconds of every process. Emulated jobs have an environment of their own, and see all.
"""

import sys

sys.modules.update(dict.fromkeys(("bitsandbytes", "scipy", "sklearn")))  # None: found nowhere, and `import` fails
