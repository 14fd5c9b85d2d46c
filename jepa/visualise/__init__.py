"""Pictures of features during a run: principal components as colours, and snapshots that the report reads."""

from jepa.visualise.components import aligned, as_colours, principal_components
from jepa.visualise.feature_pictures import FeaturePictures
from jepa.visualise.snapshots import Samples, Snapshot, read_snapshots, write_snapshot
