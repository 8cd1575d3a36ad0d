// MQTT.js over tcp, TLS, WebSocket and WebSocket over TLS, MQTT 3.1.1 and 5. Arguments and output as in
// story.py; `--modules` is the folder that npm installed into.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { parseArgs } from "node:util";

const PATIENCE_MS = 10_000;
const WHOLE_MS = 30_000;

const text = { type: "string" };
const { values: args } = parseArgs({
  options: {
    modules: text, transport: text, host: { ...text, default: "127.0.0.1" }, port: text,
    path: { ...text, default: "/mqtt" }, version: text, run: text, vehicle: text, foreign: text,
    device: text, ca: text, cert: text, key: text, alpn: text, tls: text,
  },
});
const mqtt = createRequire(`${args.modules}/package.json`)("mqtt");
const five = args.version === "5";

class Failed extends Error {}

const ok = (step) => console.log(`ok ${step}`);

function kept(topic, payload) {
  const bytes = Buffer.from(payload);
  console.log(`kept ${topic} ${bytes.length} ${bytes.subarray(0, 16).toString("hex") || "-"}`);
}

const topicOf = (name) => `dt/clients/${args.run}/${args.vehicle}/${name}`;

function short(value) {
  const shown = JSON.stringify(value, (_, v) => (v?.type === "Buffer" ? Buffer.from(v).toString("latin1") : v));
  return (shown ?? "undefined").slice(0, 200);
}

function same(what, got, wanted) {
  if (JSON.stringify(got) !== JSON.stringify(wanted)) {
    throw new Failed(`${what}: wanted ${short(wanted)}, got ${short(got)}`);
  }
}

function inTime(what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Failed(`${what}: nothing came within ${PATIENCE_MS / 1000} s`)), PATIENCE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** What arrives, for one reader that may come before or after. */
class Inbox {
  #there = [];
  #waiting = [];
  put(thing) {
    const reader = this.#waiting.shift();
    if (reader) reader(thing);
    else this.#there.push(thing);
  }
  take(what) {
    if (this.#there.length > 0) return Promise.resolve(this.#there.shift());
    return inTime(what, new Promise((resolve) => this.#waiting.push(resolve)));
  }
  get size() {
    return this.#there.length;
  }
}

class Peer {
  constructor(name, { clean = true, will, aliases } = {}) {
    this.name = name;
    this.inbox = new Inbox();
    this.ends = new Inbox();
    const options = {
      host: args.host, port: Number(args.port), protocol: args.transport,
      protocolVersion: five ? 5 : 4, clientId: name && `${args.run}-${name}`,
      clean, keepalive: 60, reconnectPeriod: 0, connectTimeout: PATIENCE_MS, will, manualConnect: true,
      properties: five
        ? {
            sessionExpiryInterval: clean ? 0 : 600, requestResponseInformation: true,
            ...(aliases ? { topicAliasMaximum: aliases } : {}),
          }
        : undefined,
    };
    if (args.transport.startsWith("ws")) options.path = args.path;
    const secrets = {};
    if (args.ca) secrets.ca = readFileSync(args.ca);
    if (args.cert) Object.assign(secrets, { cert: readFileSync(args.cert), key: readFileSync(args.key) });
    if (args.tls) secrets.minVersion = secrets.maxVersion = args.tls.replace("_", ".");
    if (args.alpn) secrets.ALPNProtocols = [args.alpn];
    Object.assign(options, secrets);
    if (args.transport === "wss") options.wsOptions = secrets;
    this.client = mqtt.connect(options);
    this.client.on("message", (topic, payload, packet) => this.inbox.put({ topic, payload, packet }));
    this.client.on("disconnect", (packet) => (this.reason = packet.reasonCode));
    this.client.on("error", (error) => (this.error = error));
    this.client.on("close", () => this.ends.put(this.reason));
  }

  async connect() {
    const connack = new Promise((resolve, reject) => {
      this.client.once("connect", resolve);
      this.client.once("close", () => reject(this.error ?? new Failed(`${this.name}: closed before CONNACK`)));
    });
    connack.catch(() => {});
    this.client.connect();
    this.connack = await inTime(`CONNACK of ${this.name}`, connack);
    return this.connack.sessionPresent;
  }

  async subscribe(filter, qos = 1, options = {}) {
    const asked = this.client.subscribeAsync(filter, { qos, ...options });
    try {
      const [granted] = await inTime(`SUBACK for ${filter}`, asked);
      return granted.qos;
    } catch (error) {
      if (!error.packet) throw error;
      return error.packet.granted[0];
    }
  }

  async unsubscribe(filter) {
    const packet = await inTime(`UNSUBACK for ${filter}`, this.client.unsubscribeAsync(filter));
    return packet?.granted;
  }

  /** The reason code of the acknowledgement. */
  async publish(topic, payload, qos = 1, { retain = false, ...properties } = {}) {
    const sent = this.client.publishAsync(topic, payload, {
      qos, retain, properties: five ? properties : undefined,
    });
    try {
      await inTime(`acknowledgement of a message to ${topic}`, sent);
      return 0;
    } catch (error) {
      if (error.code === undefined) throw error;
      return error.code;
    }
  }

  /** Below dt/: it must be taken, and the lake must have it. */
  async keep(topic, payload, qos = 1, options) {
    same(`publishing to ${topic}`, await this.publish(topic, payload, qos, options), 0);
    kept(topic || this.aliased, payload);
  }

  next(what = "message") {
    return this.inbox.take(`${what} for ${this.name}`);
  }

  async expect(topic, payload, qos, retain = false) {
    const message = await this.next(`message on ${topic}`);
    const { packet } = message;
    same("message", [message.topic, packet.qos, packet.retain], [topic, qos, retain]);
    if (!message.payload.equals(Buffer.from(payload))) {
      throw new Failed(`payload on ${topic}: wanted ${short(payload)}, got ${short(message.payload)}`);
    }
    return packet;
  }

  silent() {
    same(`messages too many for ${this.name}`, this.inbox.size, 0);
  }

  async disconnect() {
    await inTime(`end of ${this.name}`, this.client.endAsync());
  }

  /** The connection ends as when a car drives into a tunnel: no DISCONNECT. */
  async vanish() {
    this.client.stream.destroy();
    await this.ends.take(`end of ${this.name}`);
    await this.client.endAsync(true);
  }
}

async function steps() {
  const watcher = new Peer("watcher");
  same("session present", await watcher.connect(), false);
  // Of a WebSocket MQTT.js hides the TLS connection below it.
  if (args.alpn && args.transport === "mqtts") same("protocol chosen (ALPN)", watcher.client.stream.alpnProtocol, args.alpn);
  const car = new Peer("car");
  await car.connect();
  ok("connect");

  const everyByte = Buffer.from(Array.from({ length: 256 }, (_, n) => n));
  const large = Buffer.alloc(300_000);
  for (let n = 0; n < 75_000; n++) large.writeUInt32BE(n, n * 4);
  for (const qos of [0, 1, 2]) {
    const topic = topicOf(`qos${qos}`);
    same("granted QoS", await watcher.subscribe(topic, qos), qos);
    for (const payload of ["{}", everyByte, "", large]) {
      await car.keep(topic, payload, qos);
      await watcher.expect(topic, payload, qos);
    }
  }
  ok("publish and subscribe at every QoS");

  await watcher.subscribe(topicOf("many/#"), 2);
  const batch = Array.from({ length: 200 }, (_, n) => ({ topic: topicOf(`many/${(n * 7) % 5}`), payload: `number ${n}`, qos: 1 + (n % 2) }));
  const sent = batch.map(({ topic, payload, qos }) => car.keep(topic, payload, qos));
  const got = [];
  while (got.length < batch.length) got.push((await watcher.next()).payload.toString());
  // The order within one QoS is promised, not the one between them.
  for (const qos of [1, 2]) {
    const of = (payload) => 1 + (Number(payload.split(" ")[1]) % 2) === qos;
    same(`order at QoS ${qos}`, got.filter(of), batch.map((one) => one.payload).filter(of));
  }
  await Promise.all(sent);
  ok("many in flight, in order");

  let topic = topicOf("retained");
  await car.keep(topic, "old", 1, { retain: true });
  await car.keep(topic, "kept", 1, { retain: true });
  await watcher.subscribe(topic, 1);
  await watcher.expect(topic, "kept", 1, true);
  await watcher.unsubscribe(topic);
  await car.keep(topic, "", 1, { retain: true });
  await watcher.subscribe(topic, 1);
  await car.keep(topic, "live", 1);
  await watcher.expect(topic, "live", 1);
  ok("retained message, and its removal");

  topic = topicOf("will");
  await watcher.subscribe(topic, 1);
  const will = { topic, payload: Buffer.from("gone"), qos: 1, retain: false };
  if (five) will.properties = { contentType: "text/plain" };
  for (const ending of ["disconnect", "vanish"]) {
    const mortal = new Peer("mortal", { will });
    await mortal.connect();
    await mortal[ending]();
  }
  const last = await watcher.expect(topic, "gone", 1);
  if (five) same("content type of the will", last.properties.contentType, "text/plain");
  kept(topic, "gone");
  await car.keep(topic, "after", 1);
  await watcher.expect(topic, "after", 1);
  ok("will, but not after DISCONNECT");

  let sleeper = new Peer("sleeper", { clean: false });
  same("session present", await sleeper.connect(), false);
  await sleeper.subscribe(topicOf("asleep/+"), 2);
  await sleeper.vanish();
  const waiting = Array.from({ length: 5 }, (_, n) => `while asleep ${n}`);
  for (const [n, payload] of waiting.entries()) await car.keep(topicOf("asleep/a"), payload, 1 + (n % 2));
  sleeper = new Peer("sleeper", { clean: false });
  same("session present", await sleeper.connect(), true);
  const came = [];
  while (came.length < waiting.length) came.push((await sleeper.next()).payload.toString());
  same("what waited", came.sort(), waiting);
  await sleeper.disconnect();
  sleeper = new Peer("sleeper");
  same("session present after a clean start", await sleeper.connect(), false);
  await sleeper.disconnect();
  ok("a session is resumed, and given up");

  const first = new Peer("twin");
  await first.connect();
  const second = new Peer("twin");
  await second.connect();
  same("reason of the end of the first", await first.ends.take("end of the first twin"), five ? 0x8e : undefined);
  await second.disconnect();
  ok("a second connection with the same client id takes over");

  if (args.foreign) {
    const foreign = `dt/clients/${args.run}/${args.foreign}/x`;
    same("foreign filter", await watcher.subscribe(foreign, 1), five ? 0x87 : 0x80);
    if (five) {
      same("foreign topic", await car.publish(foreign, "no", 1), 0x87);
      same("foreign topic", await car.publish(foreign, "no", 2), 0x87);
    }
    ok("another vehicle's topics are refused");
  }

  if (five) await stepsOfVersion5(car, watcher);
  watcher.silent();
  await watcher.disconnect();
  await car.disconnect();
  ok("disconnect");
}

async function stepsOfVersion5(car, watcher) {
  let topic = topicOf("properties");
  await watcher.subscribe(topic, 1, { properties: { subscriptionIdentifier: 77 } });
  const correlationData = Buffer.from(Array.from({ length: 256 }, (_, n) => n));
  await car.keep(topic, "{}", 1, {
    contentType: "application/json", payloadFormatIndicator: true, messageExpiryInterval: 600,
    responseTopic: topicOf("answers"), correlationData, userProperties: { a: ["1", "2"], "ключ": "värde" },
  });
  const got = (await watcher.expect(topic, "{}", 1)).properties;
  same("content type", got.contentType, "application/json");
  same("payload format", got.payloadFormatIndicator, true);
  if (!(got.messageExpiryInterval >= 590 && got.messageExpiryInterval <= 600)) {
    throw new Failed(`message expiry: wanted about 600, got ${got.messageExpiryInterval}`);
  }
  same("response topic", got.responseTopic, topicOf("answers"));
  same("correlation data", [...got.correlationData], [...correlationData]);
  same("user properties", { ...got.userProperties }, { a: ["1", "2"], "ключ": "värde" });
  same("subscription identifier", got.subscriptionIdentifier, 77);
  ok("properties arrive as they were sent");

  let answers = topicOf("answers");
  if (args.device) {
    answers = `dt/rpc/response/${args.vehicle}/${args.device}`;
    same("response information", watcher.connack.properties.responseInformation, answers);
  }
  answers += `/${args.run}`;
  await car.subscribe(topicOf("requests"), 1);
  await watcher.subscribe(answers, 1);
  await watcher.keep(topicOf("requests"), "ping", 1, { responseTopic: answers, correlationData: Buffer.from("7") });
  const asked = (await car.expect(topicOf("requests"), "ping", 1)).properties;
  await car.keep(asked.responseTopic, "pong", 1, { correlationData: asked.correlationData });
  const answer = (await watcher.expect(answers, "pong", 1)).properties;
  same("correlation data", answer.correlationData.toString(), "7");
  ok("request and response");

  topic = topicOf("options");
  await car.keep(topic, "retained", 1, { retain: true });
  await watcher.subscribe(topic, 1, { nl: true, rap: true, rh: 2 });
  await car.keep(topic, "again", 1, { retain: true });
  await watcher.expect(topic, "again", 1, true);
  await watcher.keep(topic, "my own", 1);
  await car.keep(topic, "", 1, { retain: true });
  await watcher.expect(topic, "", 1, true);
  ok("no local, retain as published, retain handling");

  topic = topicOf("alias");
  await watcher.subscribe(topic, 1);
  car.aliased = topic;
  await car.keep(topic, "by name", 1, { topicAlias: 1 });
  await car.keep("", "by alias", 1, { topicAlias: 1 });
  await watcher.expect(topic, "by name", 1);
  await watcher.expect(topic, "by alias", 1);
  // At QoS 1: MQTT.js forgets the topic of a QoS 2 message that came by alias.
  const reader = new Peer("reader", { aliases: 3 });
  await reader.connect();
  await reader.subscribe(topicOf("aliases/#"), 1);
  for (let n = 0; n < 20; n++) {
    const [to, payload] = [topicOf(`aliases/${(n * 7) % 5}`), `number ${n}`];
    await car.keep(to, payload, 1);
    await reader.expect(to, payload, 1);
  }
  await reader.disconnect();
  ok("topic aliases, of the client and of the server");

  const nameless = new Peer("");
  await nameless.connect();
  if (!nameless.connack.properties.assignedClientIdentifier) {
    throw new Failed("no client identifier was assigned to a client without one");
  }
  await nameless.disconnect();
  ok("an assigned client identifier");
}

const limit = setTimeout(() => {
  console.error(`error: not done after ${WHOLE_MS / 1000} s`);
  process.exit(1);
}, WHOLE_MS);
try {
  await steps();
} catch (error) {
  console.error(error instanceof Failed ? `error: ${error.message}` : error);
  process.exit(1);
}
clearTimeout(limit);
console.log("done");
process.exit(0);
