"""Where captioned pictures come from: folders, COCO, LAION tars, parquet, and how a picture is opened."""
