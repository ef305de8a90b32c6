"""Where captioned pictures come from: COCO, LAION tars, parquet, and how a picture is opened."""
