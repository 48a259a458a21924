"""Cloud Optimised GeoTIFF: small pictures of the whole first, and each tile where a reader can ask for it alone."""

from __future__ import annotations

import warnings
from pathlib import Path

import rasterio
import rasterio.shutil
from rasterio.errors import NotGeoreferencedWarning

from segline.commit import committed
from segline.io.raster import ENVIRONMENT, RasterFile, check_written


def as_cog(path: Path) -> None:
    """Rewrite a finished TIFF as a Cloud Optimised GeoTIFF under the same name; a kill at any moment leaves the old one.

    Pixels, CRS, transform, no-data, colours and tags are kept. Overviews take the nearest pixel of ids, and the mean of real numbers.

    Raises:
        OSError: What was written is not what was read.
        ValueError: Not a whole TIFF file.
    """
    file = RasterFile(path)
    real = file.dtype.kind == "f"
    options = {
        "COMPRESS": "DEFLATE",
        "LEVEL": "2",  # as of plain TIFFs
        "BLOCKSIZE": "512",
        "BIGTIFF": "IF_SAFER",
        "OVERVIEWS": "IGNORE_EXISTING",
        "OVERVIEW_RESAMPLING": "AVERAGE" if real else "NEAREST",  # the mean of two ids would be a third class
        "PREDICTOR": "YES" if real else "NO",  # of real numbers the bytes alone would hardly shrink
        "OVERVIEW_PREDICTOR": "YES" if real else "NO",
        "NUM_THREADS": "ALL_CPUS",
    }
    with rasterio.Env(**ENVIRONMENT), warnings.catch_warnings(), committed(path) as temporary:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        rasterio.shutil.copy(file.dataset, temporary, driver="COG", **options)
        check_written(temporary, file.read_raw)
        file.dataset.close()
