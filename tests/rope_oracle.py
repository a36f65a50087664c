"""Rotary frequencies by the published equations, one at a time, in float64."""

import math


def frequencies(config):
    """Those of a `TransformerConfig`, whose Llama 3 scaling may be None."""
    width, scaling = config.head_width, config.rope_scaling
    unscaled = [config.rope_theta ** (-2 * i / width) for i in range(width // 2)]
    return [f if scaling is None else _scaled(f, scaling) for f in unscaled]


def _scaled(frequency, scaling):
    """Llama 3.1: by the wavelength, in tokens, of a full turn."""
    wavelength = 2 * math.pi / frequency
    context = scaling.original_max_position_embeddings
    if wavelength < context / scaling.high_freq_factor:
        return frequency
    if wavelength > context / scaling.low_freq_factor:
        return frequency / scaling.factor
    smooth = (context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency
