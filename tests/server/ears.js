// What a page says and hears, for a test: runs before the page does.
(() => {
  if (window.ears) return;
  const ears = (window.ears = {sent: [], got: [], heard: [], wanted: null, sockets: 0});

  // Every 10 ms the loudest tone at the loudspeaker, in Hz, and how loud it is.
  const connect = AudioNode.prototype.connect;
  AudioNode.prototype.connect = function (target, ...rest) {
    if (target instanceof AudioDestinationNode) {
      const ear = new AnalyserNode(this.context, {fftSize: 2048, smoothingTimeConstant: 0});
      connect.call(this, ear);
      ears.context = this.context;
      const wave = new Float32Array(1024), bins = new Float32Array(ear.frequencyBinCount);
      const timer = setInterval(() => {
        if (this.context.state === "closed") { clearInterval(timer); return; }
        ear.getFloatTimeDomainData(wave);
        ear.getFloatFrequencyData(bins);
        const level = Math.sqrt(wave.reduce((sum, x) => sum + x * x, 0) / wave.length);
        const peak = bins.indexOf(Math.max(...bins));
        const hz = level > 0.02 ? (peak * this.context.sampleRate) / ear.fftSize : 0;
        ears.heard.push([performance.now(), Math.round(hz), level]);
      }, 10);
    }
    return connect.call(this, target, ...rest);
  };
  // When a tone was heard first and last, in milliseconds; null: it was not.
  ears.tone = (hz, since = 0) => {
    const times = ears.heard.filter(([t, at]) => t > since && Math.abs(at - hz) < 40);
    return times.length ? [times[0][0], times.at(-1)[0]] : null;
  };
  ears.until = async (look) => {
    for (const end = performance.now() + 55000; performance.now() < end;) {
      const found = await look();
      if (found) return found;
      await new Promise((later) => setTimeout(later, 20));
    }
    throw new Error(`never: ${look}`);
  };

  // Events that the page sends and gets; no sound.
  const note = (list, data) => {
    const event = JSON.parse(data);
    if (!/append$|audio\.delta$/.test(event.type)) list.push({at: performance.now(), ...event});
    else if (event.audio) ears.appended = (ears.appended ?? 0) + event.audio.length;
  };
  const Native = window.WebSocket;
  window.WebSocket = class extends Native {
    constructor(...given) {
      super(...given);
      ears.sockets++;
      ears.protocols = given[1];
      this.addEventListener("message", ({data}) => note(ears.got, data));
    }
    send(data) { note(ears.sent, data); super.send(data); }
  };

  const media = navigator.mediaDevices;
  const ask = media?.getUserMedia.bind(media);
  if (ask) media.getUserMedia = async (wanted) => {
    ears.wanted = wanted.audio;
    // There is no echo here, and what looks for one mutes speech beside a steady tone.
    const plain = {echoCancellation: false, noiseSuppression: false, autoGainControl: false};
    if (ears.refuse) throw new DOMException("refused", ears.refuse);
    ears.stream = await ask({...wanted, audio: {...wanted.audio, ...plain}});
    return ears.stream;
  };
})();
