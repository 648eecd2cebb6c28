// An image from a file: as it is sent, and as it is kept.

const SENT_AS_IS = ["image/png", "image/jpeg", "image/webp"];
const MOST_BYTES = 2_000_000;
const MOST_SIDE = 1568; // no model that is served here sees more of an image
const THUMBNAIL = 96;

/** Data URIs of an image and its thumbnail; what is large, or of another type, is sent as a smaller JPEG. */
export async function read(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "This"} cannot be read as an image.`);
  }
  const isSmall = file.size <= MOST_BYTES && Math.max(bitmap.width, bitmap.height) <= MOST_SIDE;
  const image = isSmall && SENT_AS_IS.includes(file.type) ? await dataUri(file) : drawn(bitmap, MOST_SIDE);
  return { image, thumbnail: drawn(bitmap, THUMBNAIL) };
}

function drawn(bitmap, most) {
  const scale = Math.min(1, most / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // JPEG knows no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.85);
}

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(file);
  });
}
