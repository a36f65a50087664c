"""Settings for every test."""

import hypothesis

# Compiling dominates the first example of a property, so a deadline would only measure that.
# Fixed seeds: a run that fails can be repeated.
hypothesis.settings.register_profile("maxpo", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("maxpo")
