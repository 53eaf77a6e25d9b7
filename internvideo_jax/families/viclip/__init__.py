"""ViCLIP (Wang et al. 2023, InternVid)."""
