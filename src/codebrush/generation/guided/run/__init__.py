"""A guided run from request to finished pictures: its folder, how it resumes, its film, its best step."""
