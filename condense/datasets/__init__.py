"""Public point sets (ModelNet40, ScanObjectNN, ShapeNetPart, S3DIS, ScanNet) and the readers of their formats."""
