#!/usr/bin/env bash
# Installs the peers that `peers.py` measures and that come from a registry into the folder it looks in.
# Mosquitto and NATS come from Debian: apt-get install mosquitto nats-server
set -euo pipefail
into=${1:?usage: setup_peers.sh FOLDER}
mkdir -p "$into"

# Each is built in a folder of its own, which goes afterwards: nothing of theirs is among what we build.
cargo_install() {
    CARGO_TARGET_DIR="$into/build" cargo install --locked --root "$into" "$1"
    rm -rf "$into/build"
}
cargo_install rumqttd@0.20.0
cargo_install rmqttd@0.24.0 # needs cmake, a C++ compiler and OpenSSL's headers, for plug-ins that are not used

hivemq=2025.5
if ! command -v javac >/dev/null || ! command -v mvn >/dev/null; then
    echo "no HiveMQ CE: it needs a JDK (17 or later) and Maven" >&2
    exit 0
fi
mkdir -p "$into/hivemq"
cat >"$into/hivemq/pom.xml" <<XML
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>bench</groupId><artifactId>hivemq</artifactId><version>1</version>
  <dependencies><dependency>
    <groupId>com.hivemq</groupId><artifactId>hivemq-community-edition-embedded</artifactId><version>$hivemq</version>
  </dependency></dependencies>
</project>
XML
mvn -q -B -f "$into/hivemq/pom.xml" dependency:copy-dependencies -DoutputDirectory="$into/hivemq/lib"
# Its distribution lets anybody in by an extension that Maven has not; this is the switch that it turns.
cat >"$into/hivemq/Open.java" <<'JAVA'
import com.hivemq.configuration.service.InternalConfigurations;

public class Open {
    public static void main(final String[] arguments) throws Exception {
        InternalConfigurations.AUTH_DENY_UNAUTHENTICATED_CONNECTIONS.set(false);
        com.hivemq.HiveMQServer.main(arguments);
    }
}
JAVA
javac -cp "$into/hivemq/lib/*" -d "$into/hivemq/open" "$into/hivemq/Open.java"
