"""Local differential privacy: the update gets its noise on the device, and nothing else of the data leaves.

Whatever the data are, the whole numbers w before the noise satisfy |w| <= Delta_2, so replacing all of a client's data
moves them by at most 2 Delta_2. What comes after the noise, codec and network, is post-processing.
"""

from __future__ import annotations

import os

import numpy as np

from clients.round import LocalUpdate
from edge_runtime.privacy.clipping import conditional_round
from edge_runtime.privacy.noise import rounded_gaussian
from edge_runtime.privacy.words import KEY_BYTES
from edge_runtime.train.config import LocalPrivacy


def randomised(update: LocalUpdate, local: LocalPrivacy) -> LocalUpdate:
    """The update under its own noise. How many examples made it, and their loss, is not told.

    Raises:
        NumericsError: the delta holds NaN or infinity.

    """
    whole = conditional_round(update.delta, local.scale, local.clip, np.random.default_rng())
    # A fresh key of the operating system's: noise that followed from the round's seed would be no secret.
    whole += rounded_gaussian(local.noise, whole.size, os.urandom(KEY_BYTES))
    return LocalUpdate((whole / local.scale).astype(np.float32), examples=1, loss=0.0)
