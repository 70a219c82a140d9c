"""Facts as data (families, licences, published results) and the small readers for them."""
