"""Rotary position embeddings, plain and scaled, with the numbers of transformers' modeling_rope_utils.py.

Where config.json keeps the settings differs: rope_scaling in older checkpoints, rope_parameters in newer ones; the
base theta and the context length of the pretraining may stand in them or beside them. A null counts as missing.
"""


def setting(settings, name, default):
    value = getattr(settings, name, None)
    return default if value is None else value


def rope_settings(config):
    return getattr(config, "rope_scaling", None) or getattr(config, "rope_parameters", None)


def rope_type(config):
    settings = rope_settings(config)
    return setting(settings, "rope_type", setting(settings, "type", "default"))


def pretrained_context(config):
    """Positions that the model saw before its rope was scaled."""
    inner = setting(rope_settings(config), "original_max_position_embeddings", config.max_position_embeddings)
    return setting(config, "original_max_position_embeddings", inner)


def llama3_frequency(frequency, config):
    """Llama 3.1: pairs that turn seldom within the pretrained context are slowed down, smoothly up to the rest."""
    settings, context = rope_settings(config), pretrained_context(config)
    low, high = settings.low_freq_factor, settings.high_freq_factor
    wavelength = 2 * pi / frequency
    if wavelength > context / low:
        return frequency / settings.factor
    if wavelength < context / high:
        return frequency
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / settings.factor + smooth * frequency


def yarn_frequencies(frequencies, theta, factor, config):
    """YaRN (arXiv 2309.00071): fast pairs are kept, slow ones interpolated, with a linear ramp between."""
    settings, context, head_dim = rope_settings(config), pretrained_context(config), 2 * len(frequencies)
    # The pairs that turn beta_fast and beta_slow times within the pretrained context.
    low, high = [
        head_dim * log(context / (turns * 2 * pi)) / (2 * log(theta))
        for turns in [setting(settings, "beta_fast", 32) or 32, setting(settings, "beta_slow", 1) or 1]
    ]
    if setting(settings, "truncate", True):
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = 0.001 if low == high else high - low
    slowed = [min(max((i - low) / width, 0), 1) for i in range(len(frequencies))]
    return [f / factor * slowed[i] + f * (1 - slowed[i]) for i, f in enumerate(frequencies)]


def yarn_scale(factor, settings):
    """The attention factor, by which queries and keys are multiplied: longer contexts keep their sharpness."""
    mscale, all_dim = setting(settings, "mscale", 0), setting(settings, "mscale_all_dim", 0)
    if mscale and all_dim:
        inferred = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    else:
        inferred = yarn_mscale(factor, 1)
    return setting(settings, "attention_factor", inferred)


def yarn_mscale(factor, mscale):
    return 0.1 * mscale * log(factor) + 1 if factor > 1 else 1


class RotaryEmbedding(Module):
    """Turns the pairs (i, i + head_dim / 2) of queries and keys, [T, heads, head_dim], by their positions."""

    def __init__(self, config, head_dim):
        assert rope_type(config) in ["default", "linear", "llama3", "yarn"], (
            'this rope_type is not supported; accepted: "default", "linear", "llama3", "yarn"'
        )
        settings = rope_settings(config)
        assert not hasattr(settings, "full_attention") and not hasattr(settings, "sliding_attention"), (
            "rotary embeddings that differ by layer are not supported; accepted: one set of rope_parameters"
        )
        assert setting(settings, "partial_rotary_factor", setting(config, "partial_rotary_factor", 1)) == 1, (
            "rotary embeddings of a part of each head are not supported; accepted as partial_rotary_factor: 1"
        )
        theta = setting(settings, "rope_theta", setting(config, "rope_theta", 10000.0))
        self.frequencies = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
        self.scale = 1.0
        if rope_type(config) == "linear":
            self.frequencies = [f / settings.factor for f in self.frequencies]
        elif rope_type(config) == "llama3":
            self.frequencies = [llama3_frequency(f, config) for f in self.frequencies]
        elif rope_type(config) == "yarn":
            extended = config.max_position_embeddings / pretrained_context(config)
            factor = extended if settings.factor is None else settings.factor
            self.frequencies = yarn_frequencies(self.frequencies, theta, factor, config)
            self.scale = yarn_scale(factor, settings)

    def forward(self, x, positions):
        return rope(x, positions, self.frequencies, self.scale)
