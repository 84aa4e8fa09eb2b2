"""DICOM files for tests, as ultrasound scanners write them, patient and all."""

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

PATIENT = "Doe^Jane"
"""In every file; no output may hold it."""


def region(*, delta_x=0.02, delta_y=0.02, units=3, box=(0, 0, 79, 53), spatial_format=1):
    """An ultrasound region; deltas in `units` (3: cm), box x0, y0, x1, y1 inclusive."""
    item = Dataset()
    item.RegionSpatialFormat = spatial_format
    item.RegionDataType = 1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta_x, delta_y
    corners = ("MinX0", "MinY0", "MaxX1", "MaxY1")
    for corner, value in zip(corners, box, strict=True):
        setattr(item, f"RegionLocation{corner}", value)
    return item


def write_dicom(
    path, pixels, *, kind="MONOCHROME2", regions=(), syntax=ExplicitVRLittleEndian, **tags
):
    """Write (H, W[, 3]) or (N, H, W[, 3]) of uint8, uint16 or int16 as one file; further `tags`."""
    is_colour = pixels.shape[-1] == 3
    frames = pixels if pixels.ndim == 3 + is_colour else pixels[None]
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.PatientName, data.PatientID, data.Modality = PATIENT, "4711", "US"
    data.Rows, data.Columns = frames.shape[1:3]
    if len(frames) > 1:
        data.NumberOfFrames = len(frames)
    data.SamplesPerPixel, data.PhotometricInterpretation = 3 if is_colour else 1, kind
    if is_colour:
        data.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = frames.tobytes()
    data["PixelData"].VR = "OB" if bits == 8 else "OW"
    if regions:
        data.SequenceOfUltrasoundRegions = list(regions)
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path
