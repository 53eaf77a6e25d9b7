"""Lists of captioned clips -> smaller lists: filters, best share, sampling, near duplicates."""
