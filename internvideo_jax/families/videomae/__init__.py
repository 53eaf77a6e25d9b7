"""VideoMAE and VideoMAE V2 (Tong et al. 2022, Wang et al. 2023)."""
