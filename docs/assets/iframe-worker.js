/* Browsers refuse workers in a page that is opened from a file. There the search runs in a hidden frame instead, which
   looks like a worker from outside, and inside like the scope of one: it has postMessage and importScripts. */
(() => {
  if (location.protocol !== "file:") return;

  const scope = (address) => `<script>
    self.postMessage = (data) => parent.postMessage(data, "*");
    self.importScripts = (...addresses) => addresses.reduce((before, each) => before.then(() => new Promise((done, failed) => {
      const script = document.createElement("script");
      Object.assign(script, { src: each, onload: done, onerror: failed });
      document.body.append(script);
    })), Promise.resolve());
  </${""}script><body><script src="${address}"></${""}script></body>`;

  class IFrameWorker extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.loaded = new Promise((done) => (frame.onload = done));
      this.frame = frame;
      frame.srcdoc = scope(address);
      document.body.append(frame);
      addEventListener("message", (event) => {
        if (event.source === frame.contentWindow) this.dispatchEvent(new MessageEvent("message", { data: event.data }));
      });
    }

    postMessage(data) {
      this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  }

  window.IFrameWorker = window.Worker = IFrameWorker;
})();
