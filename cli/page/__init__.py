"""The page that ``enginesmith compare`` writes."""
