"""The main job on real input: a reverse dictionary. Describe a word, find it."""
