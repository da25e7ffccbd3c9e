// Turns drawings and photos into the array that a network takes.

const CELLS = 4;  // a drawing has this many ink or no ink cells to a pixel, in each direction

/** An empty array for one picture. */
export function pixels({height, width, channels, type}) {
  return new (type === 'float32' ? Float32Array : Uint8Array)(height * width * channels);
}

/** The box around what is drawn, or null where nothing is. */
function inked({data, width, height}) {
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (data[4 * (y * width + x) + 3] < 128) continue;
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = Math.max(bottom, y);
    }
  }
  return right < 0 ? null : [left, top, right - left + 1, bottom - top + 1];
}

/**
 * What is drawn, as large as the picture and in its middle, each pixel the share of its cells that
 * are inked: the way in which scanned digits are prepared (Garris et al., NIST, 1994).
 */
export function fromDrawing(pad, about) {
  const {height, width, type} = about, array = pixels(about);
  const box = inked(pad.getContext('2d').getImageData(0, 0, pad.width, pad.height));
  if (!box) return array;
  const [columns, rows] = [width * CELLS, height * CELLS];
  const canvas = new OffscreenCanvas(columns, rows), context = canvas.getContext('2d');
  const scale = Math.min(columns / box[2], rows / box[3]);
  const size = [box[2] * scale, box[3] * scale];
  context.imageSmoothingQuality = 'high';
  context.drawImage(pad, ...box, (columns - size[0]) / 2, (rows - size[1]) / 2, ...size);
  const {data} = context.getImageData(0, 0, columns, rows);
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      if (data[4 * (y * columns + x) + 3] < 128) continue;
      array[Math.floor(y / CELLS) * width + Math.floor(x / CELLS)] += 1 / CELLS ** 2 * (type === 'float32' ? 1 : 240);
    }
  }
  return type === 'float32' ? array : array.map((each) => Math.round(each * 255 / 240));
}

/** The largest part in the middle of a picture (or video) that has the form of a canvas, drawn there. */
export function squareOf(picture, canvas) {
  const [columns, rows] = [picture.videoWidth ?? picture.width, picture.videoHeight ?? picture.height];
  const scale = Math.max(canvas.width / columns, canvas.height / rows);
  const [width, height] = [canvas.width / scale, canvas.height / scale];
  const context = canvas.getContext('2d', {willReadFrequently: true});
  context.imageSmoothingQuality = 'high';
  context.drawImage(picture, (columns - width) / 2, (rows - height) / 2, width, height,
    0, 0, canvas.width, canvas.height);
  return context;
}

/** The middle of a photo, of the size and the channels that a network takes. */
export function fromPicture(picture, about) {
  const {height, width, channels, type} = about, array = pixels(about);
  const {data} = squareOf(picture, new OffscreenCanvas(width, height)).getImageData(0, 0, width, height);
  const scale = type === 'float32' ? 1 / 255 : 1;
  for (let i = 0; i < width * height; i++) {
    const colour = data.subarray(4 * i, 4 * i + 3);
    const values = channels === 3 ? colour : [0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]];
    for (let c = 0; c < channels; c++) array[i * channels + c] = Math.round(values[c]) * scale;
  }
  return array;
}
