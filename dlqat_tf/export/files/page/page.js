// The page: a picture in, the five best classes out, and how long that takes here.

import {open} from './engine.js';
import {fromDrawing, fromPicture, pixels, squareOf} from './picture.js';
import {measure, asText, milliseconds} from './measure.js';

const $ = (id) => document.getElementById(id);
const PAUSE = 60;  // milliseconds between the last stroke and the answer

let about, network, last, queued, stream, running = false;

function fail(error) {
  $('error').textContent = `${error.message ?? error} Reload the page to try again.`;
  $('error').hidden = false;
  console.error(error);
}

function chips(about) {
  const megabytes = (bytes) => bytes < 1e6
    ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(2)} MB`;
  const facts = [...about.facts, `${megabytes(about.bytes)} file`];
  if (about.deflated < 0.9 * about.bytes) facts.push(`${megabytes(about.deflated)} compressed`);
  $('facts').replaceChildren(...facts.map((text) => {
    const item = document.createElement('li');
    item.textContent = text;
    return item;
  }));
}

/** Show the picture as the network gets it. */
function show(array) {
  const {height, width, channels} = about;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) {
      const value = array[i * channels + (channels === 3 ? c : 0)];
      image.data[4 * i + c] = about.type === 'float32' ? value * 255 : value;
    }
    image.data[4 * i + 3] = 255;
  }
  $('seen').width = width;
  $('seen').height = height;
  $('seen').getContext('2d').putImageData(image, 0, 0);
}

function probabilities(scores) {
  if (about.ending === 'softmax') return Array.from(scores);
  const most = Math.max(...scores);
  const powers = Array.from(scores, (each) => Math.exp(each - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((each) => each / sum);
}

function percent(share) {
  if (share < 0.001) return '< 0.1 %';
  return `${(100 * share).toFixed(share < 0.0995 || share > 0.9995 ? 1 : 0).replace('.0', '')} %`;
}

function answer(scores) {
  const shares = probabilities(scores);
  const best = shares.map((share, i) => [share, i]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  $('answer').textContent = about.labels[best[0][1]];
  $('score-note').hidden = false;
  const items = best.map(([share, i], row) => {
    const item = $('bars').children[row] ?? document.createElement('li');
    if (!item.children.length) {
      item.append(...['b', 'span', 'div'].map((tag) => document.createElement(tag)));
      item.children[2].append(document.createElement('i'));
    }
    item.children[0].textContent = about.labels[i];
    item.children[1].textContent = percent(share);
    item.children[2].firstChild.style.width = `${100 * share}%`;
    return item;
  });
  $('bars').replaceChildren(...items);
}

/** Classify; of pictures that come while one runs, the last one follows. */
async function classify(array) {
  queued = array;
  if (running || !network) return;
  running = true;
  try {
    while (queued) {
      last = queued;
      queued = undefined;
      show(last);
      const start = performance.now();
      const [scores] = await network.run([last]);
      $('latency').textContent = milliseconds(performance.now() - start);
      $('latency').hidden = false;
      answer(scores);
    }
  } catch (error) {
    fail(error);
  } finally {
    running = false;
  }
}

function drawing() {
  const pad = $('pad'), context = pad.getContext('2d', {willReadFrequently: true});
  let from, timer;
  const at = (event) => {
    const box = pad.getBoundingClientRect(), scale = pad.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  const stroke = (event) => {
    const to = at(event);
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
    from = to;
    clearTimeout(timer);
    timer = setTimeout(() => classify(fromDrawing(pad, about)), PAUSE);
  };
  Object.assign(context, {lineWidth: 46, lineCap: 'round', lineJoin: 'round', strokeStyle: '#fff'});
  pad.addEventListener('pointerdown', (event) => {
    pad.setPointerCapture(event.pointerId);
    $('pad-hint').hidden = true;
    from = at(event);
    stroke(event);
  });
  pad.addEventListener('pointermove', (event) => { if (from && event.buttons) stroke(event); });
  for (const name of ['pointerup', 'pointercancel']) {
    pad.addEventListener(name, () => { from = undefined; });
  }
  $('clear').addEventListener('click', () => {
    context.clearRect(0, 0, pad.width, pad.height);
    $('pad-hint').hidden = false;
    waiting();
  });
}

function photos() {
  const drop = $('photo');
  const take = async (file) => {
    if (!file) return;
    dark();
    try {
      const picture = await createImageBitmap(file);
      squareOf(picture, $('preview'));
      $('preview').hidden = false;
      $('photo-hint').hidden = true;
      classify(fromPicture(picture, about));
    } catch {
      fail(new Error(`This browser cannot read ${file.name} as a picture.`));
    }
  };
  for (const id of ['file', 'camera']) {
    $(id).addEventListener('change', (event) => take(event.target.files[0]));
  }
  // Pages that come without HTTPS may not see the camera, but ask the phone for a photo.
  const sees = Boolean(navigator.mediaDevices?.getUserMedia);
  $('live').hidden = !sees;
  $('shot').hidden = sees;
  $('live').addEventListener('click', () => (stream ? dark() : live()));
  addEventListener('pagehide', dark);
  drop.addEventListener('dragover', (event) => { event.preventDefault(); drop.classList.add('over'); });
  drop.addEventListener('dragleave', () => drop.classList.remove('over'));
  drop.addEventListener('drop', (event) => {
    event.preventDefault();
    drop.classList.remove('over');
    take(event.dataTransfer.files[0]);
  });
}

/** Classify what the camera sees, picture after picture. */
async function live() {
  const video = $('video');
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    dark();
    fail(new Error(`The camera cannot be used (${error.message}).`));
    return;
  }
  lit(true);
  const next = async () => {
    if (!stream) return;
    await classify(fromPicture(video, about));
    requestAnimationFrame(next);
  };
  next();
}

/** Leave the camera; its last answer stays. */
function dark() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  if (stream) squareOf($('video'), $('preview'));
  $('preview').hidden = $('preview').hidden && !stream;
  stream = undefined;
  lit(false);
}

function lit(on) {
  $('video').hidden = !on;
  if (on) $('preview').hidden = $('photo-hint').hidden = true;
  $('live').setAttribute('aria-pressed', on);
  $('live-text').textContent = on ? 'Stop the camera' : 'Use the camera';
}

function choose(draws) {
  dark();
  $('draw').hidden = !draws;
  $('photo').hidden = $('photo-actions').hidden = draws;
  $('tab-draw').setAttribute('aria-pressed', draws);
  $('tab-photo').setAttribute('aria-pressed', !draws);
}

function waiting() {
  const text = document.createElement('span');
  text.className = 'muted';
  text.textContent = $('draw').hidden ? 'Choose a picture, and the answer is here.'
    : `Draw ${about.drawing ?? 'something'}, and the answer is here.`;
  $('answer').replaceChildren(text);
  $('bars').replaceChildren();
  $('latency').hidden = $('score-note').hidden = true;
  show(last = pixels(about));
}

async function benchmark() {
  const accelerator = $('accelerator').value;
  for (const id of ['measure', 'accelerator']) $(id).disabled = true;
  $('progress').hidden = false;
  let measured;
  try {
    measured = accelerator === 'wasm' ? network : await open(about.file, accelerator);
    const result = await measure(() => measured.run([last]), (share) => { $('progress').value = share; });
    present({...result, accelerator, threads: measured.threads});
  } catch (error) {
    fail(error);
  } finally {
    if (measured && measured !== network) measured.close();
    $('progress').hidden = true;
    for (const id of ['measure', 'accelerator']) $(id).disabled = false;
  }
}

function present(result) {
  const {median, quartiles: [low, high], fastest, slowest} = result;
  const end = Math.max(high + (high - low), median * 1.02), start = Math.max(0, Math.min(fastest, low));
  const place = (value) => 2 + 96 * Math.min(1, Math.max(0, (value - start) / (end - start)));
  $('median').textContent = milliseconds(median);
  $('box').style.left = `${place(low)}%`;
  $('box').style.width = `${place(high) - place(low)}%`;
  $('tick').style.left = `${place(median)}%`;
  $('fastest').textContent = milliseconds(start);
  $('slowest').textContent = milliseconds(end);
  $('track').setAttribute('aria-label', `Half of the runs took ${milliseconds(low)} to ${milliseconds(high)}`);
  const rows = {
    'Quartiles': `${milliseconds(low)} – ${milliseconds(high)}`,
    'Slowest': milliseconds(slowest),
    'Runs': `${result.samples} samples of ${result.runs}`,
    'Accelerator': result.accelerator === 'wasm' ? 'CPU, WebAssembly' : 'GPU, WebGPU',
    'Threads': `${result.threads}`,
    'Device': `${navigator.hardwareConcurrency ?? '?'} logical cores`,
    'Browser': browser(),
    'LiteRT.js': about.litert,
  };
  $('details').replaceChildren(...Object.entries(rows).map(([name, value]) => {
    const row = document.createElement('div');
    row.append(document.createElement('dt'), document.createElement('dd'));
    row.firstChild.textContent = name;
    row.lastChild.textContent = value;
    return row;
  }));
  $('bench').hidden = false;
  $('copy').onclick = async () => {
    await navigator.clipboard?.writeText(asText(about, median, rows, navigator.userAgent));
    $('copy').textContent = navigator.clipboard ? 'Copied' : 'This browser does not let pages copy';
  };
}

function browser() {
  const brands = navigator.userAgentData?.brands ?? [];
  const named = brands.find((each) => !/Not|Chromium/.test(each.brand)) ?? brands.find((each) => !/Not/.test(each.brand));
  if (named) return `${named.brand} ${named.version}, ${navigator.userAgentData.platform}`;
  const [, name, version] = navigator.userAgent.match(/(Firefox|CriOS|Version|Chrome)\/([\d.]+)/) ?? [];
  return name ? `${name === 'Version' ? 'Safari' : name} ${version}` : navigator.userAgent;
}

async function start() {
  about = await (await fetch('about.json')).json();
  document.title = $('title').textContent = about.title;
  chips(about);
  $('seen-size').textContent = `${about.width} × ${about.height} pixels, ${about.channels === 1 ? 'gray' : 'colour'}`;
  $('litert-version').textContent = about.litert;
  $('score-note').textContent = about.ending === 'softmax' ? ''
    : 'Bars are a softmax of the scores: trust their order more than their size.';
  $('tabs').hidden = about.channels !== 1;
  choose(about.channels === 1);
  for (const name of ['draw', 'photo']) {
    $(`tab-${name}`).addEventListener('click', () => { choose(name === 'draw'); waiting(); });
  }
  drawing();
  photos();
  if (navigator.gpu) $('accelerator').add(new Option('GPU', 'webgpu'));
  network = await open(about.file);
  waiting();
  $('measure').addEventListener('click', benchmark);
  $('measure').disabled = false;
  document.body.dataset.ready = 'yes';
}

start().catch((error) => {
  $('answer').replaceChildren();
  fail(location.protocol === 'file:'
    ? new Error('Browsers load networks from a server only: run "python -m http.server" in this folder.') : error);
});
