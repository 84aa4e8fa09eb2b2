"""Attribution of the data: HC18's record, its authors and its licence."""

HC18_RECORD = 1327317
HC18_DOI = f"10.5281/zenodo.{HC18_RECORD}"
HC18_LICENCE = (
    "HC18: T. L. A. van den Heuvel, D. de Bruijn, C. L. de Korte and B. van Ginneken, Automated "
    "measurement of fetal head circumference using 2D ultrasound images, 2018, Zenodo, "
    f"doi:{HC18_DOI}, licence CC BY 4.0."
)
CC_BY_URL = "https://creativecommons.org/licenses/by/4.0/"
