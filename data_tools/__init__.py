"""The feature store, and ids, captions and vocabularies beside it. Imports neither `extract` nor `chan`."""
