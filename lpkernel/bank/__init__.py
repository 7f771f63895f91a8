"""The bank: images encoded once, and what can be asked of them."""

from lpkernel.bank.bank import DEFAULT_BANK as DEFAULT_BANK
from lpkernel.bank.bank import TABLE_ROWS as TABLE_ROWS
from lpkernel.bank.bank import Bank as Bank
from lpkernel.bank.bank import allowed_images as allowed_images
from lpkernel.bank.bank import as_bank as as_bank
from lpkernel.bank.bank import autoencoder_of as autoencoder_of
