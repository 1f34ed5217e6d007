"""One file a format: each yields fragments of sessions (see ``luthier.clicks.fragments``)."""
